"""What every stage uses and no stage owns: artifacts, settings, models, progress, provenance, errors."""

import logging

# When peft or we import it, it warns on some CPUs of missing kernels for 4-bit products, which nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
