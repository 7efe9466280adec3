"""Files, strict readers, signals, versions and devices."""
