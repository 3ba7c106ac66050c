"""The demonstration's task: scikit-learn's digits (Alpaydin & Kaynak 1998, real scans) as meter cameras see them."""
