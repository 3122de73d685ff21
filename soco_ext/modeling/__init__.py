"""Networks of SoCo: online and target, pyramid and C4."""
