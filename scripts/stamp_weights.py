"""Write size and sha256 of the shipped weight files into faceswap/weights.toml.

Run it after `weights/lite/` has changed: python scripts/stamp_weights.py
"""

from __future__ import annotations

import re

from faceswap import weights
from faceswap.download import sha256_of
from faceswap.manifest import MANIFEST


def main() -> None:
    text = MANIFEST.read_text(encoding="utf-8")
    for entry in weights.entries().values():
        path = weights.path_of(entry)
        if entry.home != "shipped" or not path.is_file():
            continue
        size, digest = path.stat().st_size, sha256_of(path)
        table = re.compile(
            rf'(?<=\[weight\.{re.escape(entry.name)}\]\n)(.*?)size = \d+\nsha256 = "\w*"', re.DOTALL
        )
        text = table.sub(rf'\g<1>size = {size}\nsha256 = "{digest}"', text, count=1)
        print(f"{entry.name}: {size} bytes, {digest}")
    MANIFEST.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
