"""The sweep specs that come with Thaw, and the JSON schema by which editors complete a spec."""
