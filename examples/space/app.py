"""The page of ``mxa app`` as a Hugging Face Space."""

from pathlib import Path

from mxa.commands.app.serve import serve
from mxa.commands.config import AppConfig

IMAGES = Path(__file__).with_name("images")

if __name__ == "__main__":
    serve(AppConfig(host="0.0.0.0", examples=IMAGES if IMAGES.is_dir() else None))
