"""The written policies of config/policies.yaml."""
