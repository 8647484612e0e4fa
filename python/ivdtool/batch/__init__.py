"""Cohorts: many scans, labelled by worker processes, recorded in a manifest."""
