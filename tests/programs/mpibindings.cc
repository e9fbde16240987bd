// What the tests run on every rank by the C++ bindings of MPI 2; lines as mpiinject.c prints them.
#include <mpi.h>

#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

int main(int argc, char **argv)
{
    MPI::Init(argc, argv);
    int rank = MPI::COMM_WORLD.Get_rank(), size = MPI::COMM_WORLD.Get_size(), length;
    int mine = rank + 1, sum = 0, bad = 0, before = (rank + size - 1) % size;
    MPI::COMM_WORLD.Allreduce(&mine, &sum, 1, MPI::INT, MPI::SUM);
    std::vector<double> sent(100000), got(sent.size(), -1);
    for (size_t i = 0; i < sent.size(); i++)
        sent[i] = rank * 7 + i;
    MPI::Status status;
    MPI::COMM_WORLD.Sendrecv(&sent[0], sent.size(), MPI::DOUBLE, (rank + 1) % size, 3, &got[0],
                             got.size(), MPI::DOUBLE, before, 3, status);
    for (size_t i = 0; i < got.size(); i++)
        bad += got[i] != before * 7 + double(i);
    bad += status.Get_source() != before;
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    MPI_Get_library_version(version, &length);
    std::string text(version, length);
    for (char &c : text)
        c = c == '\n' || c == '\t' ? ' ' : c;
    std::ostringstream out;
    out << "rank=" << rank << " size=" << size << " sum=" << sum << " bad=" << bad
        << " version=" << text.substr(0, 90) << "\n";
    std::ifstream maps("/proc/self/maps");
    std::string line, last;
    while (rank == 0 && std::getline(maps, line)) {
        size_t at = line.find('/');
        if (at == std::string::npos || line.substr(at) == last)
            continue;
        last = line.substr(at);
        if (last.find("/libmpi") != std::string::npos || last.find("/libuc") != std::string::npos)
            out << "maps=" << last << "\n";
    }
    std::cout << out.str() << std::flush;
    MPI::Finalize();
    return bad != 0;
}
