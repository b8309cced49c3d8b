"""Tensors only: shards of transformers and the arithmetic on them. Knows no ray, grpc, tenants or regions."""
