"""Pictures and pages made from images and a run."""
