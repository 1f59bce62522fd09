/* A library on MPI's profiling interface, to be preloaded. For each collective it appends a line to $MPI_TIME.<rank>: the
 * name, the bytes that this rank passes in, the seconds that it waits for the other ranks, and the seconds that the collective
 * then takes. The barrier that separates the two times is not in an ordinary run. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

static FILE *out;

static double arrive(MPI_Comm comm) {
    double start = MPI_Wtime();
    PMPI_Barrier(comm);
    return MPI_Wtime() - start;
}

static void note(const char *call, int count, MPI_Datatype type, double waited, double took) {
    int size, rank;
    char path[4096];
    if (!out) {
        PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
        snprintf(path, sizeof path, "%s.%d", getenv("MPI_TIME"), rank);
        if (!(out = fopen(path, "a"))) return;
    }
    PMPI_Type_size(type, &size);
    fprintf(out, "%s %lld %.9f %.9f\n", call, (long long)count * size, waited, took);
    fflush(out);
}

int MPI_Allreduce(const void *from, void *to, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
    double waited = arrive(comm), start = MPI_Wtime();
    int code = PMPI_Allreduce(from, to, count, type, op, comm);
    note("all-reduce", count, type, waited, MPI_Wtime() - start);
    return code;
}

int MPI_Allgather(const void *from, int count, MPI_Datatype type, void *to, int counts, MPI_Datatype types, MPI_Comm comm) {
    double waited = arrive(comm), start = MPI_Wtime();
    int code = PMPI_Allgather(from, count, type, to, counts, types, comm);
    note("all-gather", count, type, waited, MPI_Wtime() - start);
    return code;
}
