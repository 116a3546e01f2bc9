"""``python -m rekd_runtime``, from the wheel."""

from rekd_runtime import main

raise SystemExit(main())
