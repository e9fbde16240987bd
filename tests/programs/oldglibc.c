/* What programs ask of their C library, each answered by a line "ok WORD" of rank 0: threads and their end by
 * cancellation (which loads libgcc_s), thread-local memory of a library that is loaded late, modules of iconv, a
 * compiled locale, names of hosts and users, mathematics, MPI. Built in an old image, run on a newer glibc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <gnu/libc-version.h>
#include <iconv.h>
#include <langinfo.h>
#include <locale.h>
#include <math.h>
#include <mpi.h>
#include <netdb.h>
#include <pthread.h>
#include <pwd.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int rank;
static __thread int own = 7;
static sem_t waiting;

static void say(const char *word, int good)
{
    if (!rank || !good)
        printf("%s %s\n", good ? "ok" : "BAD", word);
}

static void *adds(void *value)
{
    own += (int)(long)value;
    return (void *)(long)own;
}

static void *waits(void *unused)
{
    sem_post(&waiting);
    for (;;)
        pause();
    return unused;
}

/* For a debugger to stop at. */
__attribute__((noinline)) void here(void) { __asm__ volatile(""); }

static void threads(void)
{
    pthread_t many[8];
    long sum = 0;
    void *result;
    for (long n = 0; n < 8; n++)
        pthread_create(&many[n], NULL, adds, (void *)n);
    for (int n = 0; n < 8; n++) {
        pthread_join(many[n], &result);
        sum += (long)result;
    }
    say("threads", sum == 8 * 7 + 28 && own == 7);
    sem_init(&waiting, 0, 0);
    pthread_create(&many[0], NULL, waits, NULL);
    sem_wait(&waiting);
    here();
    pthread_cancel(many[0]);
    pthread_join(many[0], &result);
    say("cancel", result == PTHREAD_CANCELED);
}

static void loads(const char *library)
{
    void *found = dlopen(library, RTLD_NOW);
    int (*next)(void) = found ? (int (*)(void))dlsym(found, "next") : NULL;
    say("dlopen", next && next() == 42 && next() == 43);
    double (*cosine)(double) = (double (*)(double))dlsym(dlopen("libm.so.6", RTLD_NOW), "cos");
    say("libm", cosine && fabs(cosine(0.5) - 0.8775825618903728) < 1e-15 && pow(2, 0.5) > 1.41);
}

static int converts(const char *charset, const char *text, const char *wanted)
{
    char in[32], out[32] = "", *from = in, *to = out;
    size_t left = strlen(text), room = sizeof out - 1;
    strcpy(in, text);
    iconv_t to_it = iconv_open(charset, "UTF-8");
    if (to_it == (iconv_t)-1 || iconv(to_it, &from, &left, &to, &room) == (size_t)-1)
        return 0;
    return !iconv_close(to_it) && !strcmp(out, wanted);
}

static void names(void)
{
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found = NULL;
    char host[64];
    int failed = getaddrinfo("localhost", "80", &hints, &found);
    if (!failed)
        failed = getnameinfo(found->ai_addr, found->ai_addrlen, host, sizeof host, NULL, 0, NI_NUMERICHOST);
    say("getaddrinfo", !failed && !strcmp(host, "127.0.0.1"));
    struct passwd *user = getpwuid(getuid());
    say("getpwuid", user && getpwnam(user->pw_name));
}

int main(int argc, char **argv)
{
    int size, one = 1, sum = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    say("mpi", sum == size);
    threads();
    loads(argv[1]);
    say("iconv", converts("ISO-8859-15", "\xe2\x82\xac", "\xa4") && converts("EUC-JP", "\xe3\x81\x82", "\xa4\xa2"));
    struct tm when = {.tm_mon = 4, .tm_mday = 1};
    char month[32] = "";
    int set = setlocale(LC_ALL, "de_DE.UTF-8") != NULL;
    strftime(month, sizeof month, "%B", &when);
    say("locale", set && !strcmp(localeconv()->decimal_point, ",") && !strcmp(month, "Mai"));
    setlocale(LC_ALL, "C");
    names();
    if (!rank)
        printf("libc glibc %s, ranks %d\n", gnu_get_libc_version(), size);
    MPI_Finalize();
    return 0;
}
