"""The router's HTTP door: the OpenAI API in front of the same service that gRPC calls reach."""
