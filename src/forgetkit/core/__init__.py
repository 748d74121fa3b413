"""What every stage uses and no stage owns: artifacts, settings, models, progress, provenance, errors."""
