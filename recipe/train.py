"""Train EDM2.

    composer recipe/train.py yamls/edm2.yaml [more.yaml ...] [key=value ...]

Everything the run writes is below `save_folder`: config.yaml, checkpoints/, snapshots/, samples/, tensorboard/. The
same command started again goes on from the latest checkpoint. `dry_run=true` checks the configuration and prints sizes.
Ctrl-C, or SIGTERM, SIGUSR1 or SIGHUP to any rank: all finish the batch, save, and the run ends; a second Ctrl-C ends it
at once.
Exit status: 0 done, 2 bad input, 75 stopped by a signal and saved, or by keys of S3 that expired (start it again), 130
Ctrl-C before there was anything to save, 1 anything else.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.interrupts import end_at_once
    from recipe.lean_imports import import_less

    end_at_once("train.py")
    import_less()

import gc
import sys

from recipe.command_line import AGAIN, USAGE_ERROR, UserError, exit_with
from recipe.configuration.reader import read_or_exit
from recipe.interrupts import interruptible, leave_quietly, outlive_readers
from recipe.ranks import find_ranks
from recipe.training.services import check_services

INTERRUPTION = "train.py", "nothing was trained since the start"


def main() -> None:
    outlive_readers()
    # Bad input must end here: torch, Composer and the process group come after.
    config = read_or_exit(sys.argv[1:], "train.py")
    try:
        if config.dry_run:
            from recipe.planning.plan import print_plan

            print_plan(config)
            return

        ranks = find_ranks()
        if ranks.first:
            check_services(config.logging)
        gc.disable()  # during the imports, whose objects all stay, it takes a fifth of their time
        from recipe.training.run import train  # takes seconds, and Composer has handlers of its own

        gc.enable()

        with interruptible(*INTERRUPTION):
            status = train(config, ranks)
    except UserError as error:
        exit_with("train.py", error, on_every_rank=False, status=AGAIN if error.again else USAGE_ERROR)
    leave_quietly(status)


if __name__ == "__main__":
    with interruptible(*INTERRUPTION):
        main()
