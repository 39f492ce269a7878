"""Independent-component layers."""
