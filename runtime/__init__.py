"""What every stage stands on: config, run directories, provenance, errors, compatibility."""

from runtime import compat

compat.prepare_torchvision_on_import()
