"""Run the tour: every block of docs/tour.md, in a folder of its own, keeping what each step says.

python docs/tour.py OUT    # OUT/01.txt, 02.txt, …: the block, its output, its time
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the blocks that are run."""
    return re.findall(
        r"^```(sh|python)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def main(out: Path) -> int:
    """Run them; the exit code of the first that fails, or 0."""
    out.mkdir(parents=True)
    work = out / "work"
    work.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(work.resolve()), "COLUMNS": "100"}
    for number, (language, text) in enumerate(blocks(Path(__file__).with_name("tour.md")), 1):
        command = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
        began = time.monotonic()
        told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, cwd=work, env=environment, text=True, **told)
        seconds = time.monotonic() - began
        (out / f"{number:02d}.txt").write_text(
            f"{text}\n--- {seconds:.1f} s\n{done.stdout}", encoding="utf-8"
        )
        print(f"step {number}: {seconds:.1f} s, exit code {done.returncode}", flush=True)
        if done.returncode:
            print(done.stdout)
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
