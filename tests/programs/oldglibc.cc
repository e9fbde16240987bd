// C++ in an old image on a newer glibc: exceptions through libraries' frames and out of threads, call_once, streams.
#include <mpi.h>

#include <algorithm>
#include <exception>
#include <iostream>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

static void thrower(const std::string &what) { throw std::runtime_error(what); }

static bool sorts()
{
    std::vector<int> numbers{3, 1, 2};
    try {
        std::sort(numbers.begin(), numbers.end(), [](int a, int b) { return a == b ? true : (thrower("sort"), a < b); });
    } catch (const std::exception &error) {
        return std::string("sort") == error.what();
    }
    return false;
}

static bool rethrows()
{
    std::exception_ptr kept;
    std::thread other([&] {
        try {
            thrower("thread");
        } catch (...) {
            kept = std::current_exception();
        }
    });
    other.join();
    try {
        std::rethrow_exception(kept);
    } catch (const std::runtime_error &error) {
        return std::string("thread") == error.what();
    }
}

int main(int argc, char **argv)
{
    int rank, size, sum = 0, one = 1;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    std::once_flag flag;
    int times = 0;
    for (int n = 0; n < 3; n++)
        std::call_once(flag, [&] { times++; });
    bool good = sorts() && rethrows() && times == 1 && sum == size;
    if (!rank || !good)
        std::cout << (good ? "ok c++" : "BAD c++") << std::endl;
    MPI_Finalize();
}
