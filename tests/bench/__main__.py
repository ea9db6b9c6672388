"""``make bench``: the CPU benchmarks, one after another."""

from tests.bench import bench_remote, bench_shuffle, bench_verify, bench_views

if __name__ == "__main__":
    bench_views.main()
    bench_verify.main()
    bench_shuffle.main()
    bench_remote.main()
