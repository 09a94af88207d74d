"""Speed and memory beside peers, measured in the same run."""
