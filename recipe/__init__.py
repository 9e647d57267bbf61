"""EDM2 training recipe. Each command imports it before torch, whose threads it sets up."""

import os

from recipe.threads import set_thread_defaults

set_thread_defaults(os.environ)
