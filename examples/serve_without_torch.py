"""Serves an exported model over HTTP, without PyTorch: an image in, JSON out.

    pip install "mxa[onnx]"
    mxa export efficientvit_ml_m0_mxa.r160_nih8k --format onnx --output exported     # or your run; needs PyTorch, once
    python examples/serve_without_torch.py exported
    curl --data-binary @examples/images/00001373_038.jpg http://127.0.0.1:8000

It answers within a second of its start. An example: it takes one image at a time, from this machine alone.
"""

import argparse
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import mxa
from mxa.data.image_io import read_image
from mxa.utils.errors import InputError

LARGEST = 50_000_000  # bytes


class Handler(BaseHTTPRequestHandler):
    """Answers a POST whose body is a PNG, a JPEG or another image that Pillow reads."""

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= LARGEST:
            return self.answer(413, {"error": f"send one image of at most {LARGEST:,} bytes"})
        try:
            self.answer(200, self.server.predict(read_image(BytesIO(self.rfile.read(length)))))
        except InputError as error:
            self.answer(400, {"error": str(error)})

    def answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(folder: Path, port: int) -> None:
    server = HTTPServer(("127.0.0.1", port), Handler)
    server.predict = mxa.load_exported(folder)
    loaded = "with" if "torch" in sys.modules else "without"
    print(f"http://127.0.0.1:{server.server_port} answers, {loaded} PyTorch", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what mxa export wrote")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    main(**vars(parser.parse_args()))
