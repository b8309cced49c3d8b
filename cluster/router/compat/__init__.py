"""Other systems' gRPC protocols in front of the same service: KServe's and vLLM's clients can ask a router."""
