"Run commands that must leave the working tree as it is: unchanged.py COMMAND..."
import subprocess
import sys


def state() -> str:
    "Everything git sees in the working tree"
    return "".join(subprocess.run(["git", *args], check=True, capture_output=True, text=True).stdout
                   for args in (["status", "--porcelain"], ["diff", "HEAD"]))


before = state()
for command in sys.argv[1:]: subprocess.run([command], check=True)
if state() != before:
    sys.exit(f"{' and '.join(sys.argv[1:])} changed the working tree; commit what they wrote:\n"
             + subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True).stdout)
