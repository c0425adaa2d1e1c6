"""The paper's experiments: its metrics, the systems that it compares, its probe of the layers."""
