"""How long until planetlab answers: `python benchmarks/start.py [ROUNDS]`

Fresh interpreters in turn, medians over the rounds; the goals are 0.3 s for `import planetlab` and 0.5 s for `planetlab --help`."""
import resource
import statistics
import subprocess
import sys
import time

import pandas as pd

HELP = "import sys; sys.argv = ['planetlab', '--help']; from planetlab.cli import main; main()"
STARTS = {"python alone": "pass", "import planetlab": "import planetlab", "planetlab --help": HELP, "import numpy": "import numpy",
          "import torch": "import torch"}
HEAVY = "{'torch', 'rasterio', 'sklearn'} & set(__import__('sys').modules)"


def cpu_s():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(rounds=7):
    seconds = {name: [] for name in STARTS}
    for _ in range(rounds):
        for name, code in STARTS.items():
            wall, cpu = time.perf_counter(), cpu_s()
            subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append((time.perf_counter() - wall, cpu_s() - cpu))
    print(pd.DataFrame({name: [round(statistics.median(s), 3) for s in zip(*v)] for name, v in seconds.items()}, index=["wall s", "CPU s"]).T)
    heavy = subprocess.run([sys.executable, "-c", f"import planetlab; print({HEAVY} or 'nothing heavy')"], capture_output=True, text=True, check=True)
    print("import planetlab loads", heavy.stdout.strip())


if __name__ == "__main__": main(*map(int, sys.argv[1:]))
