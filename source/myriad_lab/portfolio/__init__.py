"""Portfolio bundles, their manifests and the folders of runs."""
