"""The resolved configuration of a run, printed.

python recipe/config.py yamls/edm2.yaml [more.yaml ...] [key=value ...]
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.interrupts import end_at_once

    end_at_once("config.py")

import sys


def main() -> None:
    from recipe.configuration.reader import read_or_exit, to_yaml

    print(to_yaml(read_or_exit(sys.argv[1:], "config.py")), end="")


if __name__ == "__main__":
    from recipe.interrupts import interruptible

    with interruptible("config.py", "nothing was written"):
        main()
