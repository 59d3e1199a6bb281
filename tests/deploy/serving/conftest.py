"""Where the extra `deploy` is not installed these tests are left out."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("fastapi") and find_spec("rasterio") else ["test_*.py"]
