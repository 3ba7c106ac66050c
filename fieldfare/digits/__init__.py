"""The demonstration's task: scikit-learn's bundled digits (real scans, Alpaydin & Kaynak 1998), seen as meter cameras."""
