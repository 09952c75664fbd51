"""Pictures of what a run did: for people who would rather look than read."""
