/* udi-run in C: a rank that joins a node's container, in a millisecond. Whatever is not understood
 * here is handed over by exec to the Python program, with nothing changed; docs/launchers.md.
 *
 * Nothing is freed: the process becomes the command. No buffer has a size that an input could
 * outgrow; no string is copied but by the functions of text.c. */
#ifndef JOINER_H
#define JOINER_H
#define _GNU_SOURCE

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* text.c: bytes that grow, with a NUL behind them; lists of strings that end with NULL. */
struct text {
    char *at;
    size_t length, room;
};
struct list {
    char **at;
    size_t count, room;
};
void *memory(size_t bytes);
void add_bytes(struct text *text, const void *bytes, size_t length);
void add(struct text *text, const char *string);
void add_number(struct text *text, unsigned long long number);
char *joined(const char *const *parts); /* up to NULL */
char *number_in(const char *before, unsigned long long number, const char *after);
void push(struct list *list, const char *string);
bool starts(const char *string, const char *with);
bool ends(const char *string, const char *with);
bool is_one_of(const char *string, const char *const *list);
size_t stripped(const char **word, size_t length);
bool digits(const char *at, size_t length, size_t most, unsigned long long *number);

#define JOIN(...) joined((const char *const[]){__VA_ARGS__, NULL})

/* environment.c: NAME=VALUE strings in the caller's order, each name once. */
void environment_read(struct list *env, char **given);
char *get(const struct list *env, const char *name);
const char *get_or(const struct list *env, const char *name, const char *otherwise);
const char *first_set(const struct list *env, const char *const *names);
void set(struct list *env, const char *name, const char *value);
void unset(struct list *env, const char *name);
void without_host(struct list *env, bool clear, bool shifter);
void apply(struct list *env, const char *op, const char *name, const char *value);
void select_gpus(const struct list *caller, struct list *env);

/* envfile.c: the variables of --env-file. */
void apply_file(struct list *env, const char *path);

/* options.c: the command line, by the table of plan/options.py. */
struct given {
    bool set;
    char *value;
    struct list values;
};
struct request {
    struct given *options; /* by the numbers of tables.h */
    char *image;
    struct list command;
};
bool is_image(const char *word);
void give(struct request *request, int option, char *value);
void parse(struct request *request, char **argv, const struct list *env);

/* shifter.c: what is meant by Shifter's words; returns the command. */
char **shifter_command(struct request *request, char **rest, const struct list *env);

/* launcher.c: who started this rank, and the container's name. */
char *launcher(const struct list *env, const char *share);
bool is_ranked(const struct list *env);
void digest(const struct text *data, struct text *name);
void container_key(const struct request *request, const char *who, const struct list *env,
                   struct text *key, struct text *name);

/* keep.c: who shares a container that waits for the next start; NULL for nobody. */
char *keep_owner(const struct request *request, const struct list *env);
void check_keep(const struct request *request);

/* process.c: /proc/PID/stat. */
bool start_and_parent(long pid, unsigned long long *start, long *parent);
unsigned long long started(long pid);
bool alive(long pid, unsigned long long start);
bool read_all(int fd, struct text *text, size_t most);
bool read_file(const char *path, struct text *text, size_t most);

/* places.c: the state directory. */
int place_find(const struct list *env, bool make, bool *alone);

/* record.c: the node's record. */
struct record {
    int fd;
    struct text data;
    size_t tail; /* where the members begin in the file */
    const char *members;
    size_t length; /* theirs */
    char *request, *server, *dead, *workdir;
    size_t request_length;
    unsigned long long user, mnt;
    struct list before, after; /* op, name, value, op, name, value, ... */
    struct list entrypoint, cmd;
    char *again; /* the line of a member who was found behind many that have ended */
    struct list same; /* kind, path, state, kind, path, state, ... */
    /* Of a plan that is noted (launch/known.py) in place of a container: */
    bool is_plan, optimized;
    unsigned long long until; /* seconds since 1970 */
    char *path, *place;       /* of the image's file, of the state directory */
    char *verify;             /* how its windows are checked; NULL: not */
    struct list steps;        /* kind, path, how, what, kind, ... */
    struct text copied;       /* the fields that a container's record has too */
};
bool record_read(int directory, const char *name, struct record *record);

/* fits.c: whether it is the container that is asked for, and as it was. */
bool record_fits(const struct record *record, const struct text *key);
bool record_is_known(const struct record *record, const struct text *key);

/* members.c: through which process to enter, and the way in. */
bool record_entering(const struct record *record);
bool find_spaces(struct record *record, int spaces[2]);
void enter(const struct record *record, const int spaces[2]);
bool first_to_tell(const struct record *record);

/* election.c: the lock of who builds. */
void elect(int directory, const char *name, bool build);
void release(void);

/* command.c: what the rank becomes. */
void current_names(struct list *names, const struct list *caller);
struct command {
    struct list argv, env, cwd;
};
void prepare(struct command *command, const struct request *request, const struct record *record,
             const struct list *env);
void check_words(const struct command *command, const struct list *env);
void add_field(struct text *text, const char *name, const char *value, size_t length);
void print_plan(const struct command *command, const struct text *name, const struct text *key);

/* arrive.c: the folder, and execve(2). */
void arrive(struct command *command, const struct request *request, const struct record *record,
            const struct list *caller);
_Noreturn void execute(struct command *command);

/* served.c: the image server of a known plan. */
struct served {
    int helper, server; /* sockets to the two processes */
};
bool serve(struct served *served, const struct list *words, bool checks);
bool say(int socket, const struct list *words, const int *fds, size_t count);
char *server_of(const struct served *served);
int ended(pid_t child);

/* ahead.c: what the image server is told of the start. */
struct known {
    const char *image, *program;        /* the file; the command's first word */
    const char *key, *keep, *questions; /* of plan/start.py: what is prefetched, */
    const char *verify;                 /* and how the image is checked, "" for not at all */
    bool behind;
};
void about(const struct request *request, struct known *known);
bool questions(struct known *known, const char *place, bool optimized);
bool announce(const struct served *served, const struct known *known);

/* image.c, mounts.c: the container of a known plan, and its steps. */
bool make_container(const struct served *served, const struct known *known,
                    const struct list *steps);
bool wrote(const char *path, int flags, mode_t mode, const char *text);
bool upper(const struct list *steps);
bool steps_done(const struct list *steps);

/* known.c */
void start_known(const struct request *request, const struct list *env);

/* message.c */
const char *reason(int number);
bool printable(const char *string);
void speak_as(const struct list *env);
void complain(const char *message, const char *hint);
_Noreturn void fail(int status, const char *message, const char *hint);

/* handover.c */
struct start {
    char **argv, **environ;
    bool shifter;
    bool notes; /* a plan was looked for: Python notes its own, where it can */
    int directory, lock; /* held for who builds, or the second for who waits to join; -1 */
    const char *name;
};
extern struct start start;
char *python_script(void);
void python_words(struct list *argv, const char *program, const struct list *options);
void python_execute(const struct list *argv);
_Noreturn void hand_over(void);

#endif
