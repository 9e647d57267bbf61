import os

# Tests, their ranks and their loader workers share few cores: spinning OpenMP threads would slow all of them a lot.
os.environ.setdefault("OMP_NUM_THREADS", "1")
