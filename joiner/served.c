/* The image server of a start whose plan is known: Python, which loads while the container is made
 * here. It is told what serve/helper.py tells it, in the messages of base/messages.py. */
#include "joiner.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    CLOSE_RANGE = 436, /* close_range(2), Linux 5.9 */
    ON_EXEC = 4,
    LONGEST = 1 << 15, /* bytes; longer words would have to be sent as a file */
    MOST_FDS = 2,
};

/* Send words and descriptors; false where that fails. */
bool say(int socket, const struct list *words, const int *fds, size_t count)
{
    struct text text = {0};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(MOST_FDS * sizeof(int))];
    } rights = {0};
    for (size_t i = 0; i < words->count; i++) {
        if (i)
            add_bytes(&text, "", 1);
        add(&text, words->at[i]);
    }
    if (text.length > LONGEST || count > MOST_FDS)
        return false;
    struct iovec part = {text.at, text.length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count) {
        message.msg_control = rights.room;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        rights.header.cmsg_level = SOL_SOCKET;
        rights.header.cmsg_type = SCM_RIGHTS;
        rights.header.cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(&rights.header), fds, count * sizeof(int));
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL) == (ssize_t)text.length;
}

/* In a process of its own: nothing of the caller's is left but directory, limits and CPUs, which
 * Python gives up as serve/outside.py says. */
static _Noreturn void become_server(const struct list *argv, const int sockets[2])
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        _exit(125);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    syscall(CLOSE_RANGE, 3U, ~0U, ON_EXEC); /* where it is refused, Python closes them */
    for (int i = 0; i < 2; i++)
        fcntl(sockets[i], F_SETFD, 0);
    python_execute(argv);
    _exit(125);
}

/* Start it; `words` are the arguments of serve/separate.py, or of serve/checked.py where it `checks`
 * the image. False where no process can be made. */
bool serve(struct served *served, const struct list *words, bool checks)
{
    struct list argv = {0}, options = {0};
    int helper[2], server[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, helper) ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, server))
        return false;
    int theirs[2] = {helper[1], server[1]};
    char *first = number_in("sockets=", (unsigned)helper[1], ".");
    push(&options, number_in(first, (unsigned)server[1], ""));
    python_words(&argv, checks ? "checked" : "image", &options);
    for (size_t i = 0; i < words->count; i++)
        push(&argv, words->at[i]);
    /* Not the command's child, which it would find among its own. */
    pid_t between = fork();
    if (between == 0) {
        setsid(); /* the terminal's signals are for the command */
        pid_t child = fork();
        if (child == 0)
            become_server(&argv, theirs);
        _exit(child < 0);
    }
    close(helper[1]);
    close(server[1]);
    *served = (struct served){helper[0], server[0]};
    return between > 0 && ended(between) == 0;
}

/* Wait for a child; its exit status, or -1. Where the caller ignores SIGCHLD there is none: 0. */
int ended(pid_t child)
{
    int status = 0;
    pid_t found;
    while ((found = waitpid(child, &status, 0)) < 0 && errno == EINTR)
        ;
    if (found < 0)
        return errno == ECHILD ? 0 : -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* "PID START" of the image server, from the helper's message "pid PID START"; NULL. */
char *server_of(const struct served *served)
{
    static const char WORD[] = "pid ";
    char part[64];
    ssize_t length;
    while ((length = recv(served->helper, part, sizeof part - 1, 0)) < 0 && errno == EINTR)
        ;
    if (length < (ssize_t)sizeof WORD || strncmp(part, WORD, sizeof WORD - 1) != 0)
        return NULL;
    part[length] = 0;
    return JOIN(part + sizeof WORD - 1);
}
