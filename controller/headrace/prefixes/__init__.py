"""Data producers: which prefixes each endpoint's cache holds, estimated and as servers report it; tokens of prompts."""
