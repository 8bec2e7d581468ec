"""Headrace: an endpoint picker and an InferencePool gateway controller for Kubernetes."""
