"""Train EDM2.

    composer recipe/train.py yamls/edm2.yaml [more.yaml ...] [key=value ...]

Everything the run writes is below `save_folder`: config.yaml, checkpoints/, snapshots/, samples/, tensorboard/. The
same command started again goes on from the latest checkpoint. `dry_run=true` checks the configuration and prints sizes.
SIGTERM or SIGUSR1 to any rank: all finish the batch, save, and the run ends.
Exit status: 0 done, 2 bad input, 75 stopped by a signal and saved (start it again), 1 anything else.
"""

import sys

from recipe.command_line import UserError, exit_with
from recipe.configuration.reader import read_or_exit


def main() -> None:
    # Bad input must end here: torch, Composer and the process group come after.
    config = read_or_exit(sys.argv[1:], "train.py")
    try:
        if config.dry_run:
            from recipe.planning.plan import print_plan

            print_plan(config)
            return

        from recipe.training.run import train

        status = train(config)
    except UserError as error:
        exit_with("train.py", error, on_every_rank=False)
    sys.exit(status)


if __name__ == "__main__":
    main()
