/* What the tests run on every rank: library version, allreduce, ping-pong of all sizes, and which
   files of an MPI are mapped. One line of "key=value" a rank; with an argument, timings of rank 0:
   "time BYTES MICROSECONDS", the median of the half round trips. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void once(char *data, int bytes, int rank)
{
    if (rank == 0) {
        MPI_Send(data, bytes, MPI_CHAR, 1, 7, MPI_COMM_WORLD);
        MPI_Recv(data, bytes, MPI_CHAR, 1, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    } else if (rank == 1) {
        MPI_Recv(data, bytes, MPI_CHAR, 0, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Send(data, bytes, MPI_CHAR, 0, 7, MPI_COMM_WORLD);
    }
}

static double median(char *data, int bytes, int rank, int times)
{
    double *taken = malloc(sizeof(double) * times), found;
    for (int i = -times / 10; i < times; i++) {
        double start = MPI_Wtime();
        once(data, bytes, rank);
        if (i >= 0)
            taken[i] = (MPI_Wtime() - start) / 2 * 1e6;
    }
    qsort(taken, times, sizeof(double), compare);
    found = taken[times / 2];
    free(taken);
    return found;
}

static int wrong_data(char *data, int bytes, int rank)
{
    int bad = 0;
    for (int i = 0; i < bytes; i++)
        data[i] = rank == 0 ? (char)(i * 7) : 0;
    once(data, bytes, rank);
    if (rank < 2)
        for (int i = 0; i < bytes; i++)
            bad += data[i] != (char)(i * 7);
    return bad;
}

static void print_maps(void)
{
    char line[4096], seen[65536] = " ";
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        char *path = strchr(line, '/'), *end;
        if (!path || !(strstr(path, "libmpi") || strstr(path, "libfabric") || strstr(path, "libuc")))
            continue;
        end = strchr(path, '\n');
        if (end)
            *end = ' ';
        if (!strstr(seen, path) && strlen(seen) + strlen(path) < sizeof seen)
            strcat(seen, path);
    }
    printf("maps=%s\n", seen + 1);
}

int main(int argc, char **argv)
{
    int rank, size, length, bad = 0;
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_library_version(version, &length);
    for (char *c = version; *c; c++)
        if (*c == '\n' || *c == '\t')
            *c = ' ';
    version[90] = 0;
    double mine = rank + 1, sum = 0;
    MPI_Allreduce(&mine, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    char *data = malloc(4 << 20);
    int sizes[] = {0, 8, 1024, 8192, 65536, 1 << 20, 4 << 20};
    for (int i = 0; size > 1 && i < 7; i++) {
        bad += wrong_data(data, sizes[i], rank);
        if (argc > 1) {
            double taken = median(data, sizes[i], rank, sizes[i] > 65536 ? 200 : 2000);
            if (rank == 0)
                printf("time %d %.3f\n", sizes[i], taken);
        }
    }
    printf("rank=%d size=%d sum=%.0f bad=%d version=%s\n", rank, size, sum, bad, version);
    if (rank == 0)
        print_maps();
    fflush(stdout);
    MPI_Finalize();
    return bad != 0;
}
