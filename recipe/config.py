"""The resolved configuration of a run, printed.

python recipe/config.py yamls/edm2.yaml [more.yaml ...] [key=value ...]
"""

import sys


def main() -> None:
    from recipe.configuration.reader import read_or_exit, to_yaml

    print(to_yaml(read_or_exit(sys.argv[1:], "config.py")), end="")


if __name__ == "__main__":
    main()
