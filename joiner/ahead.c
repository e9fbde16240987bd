/* What a known start prefetches, and what its image server is told of that: launch/facts.py and
 * serve/prefetch.py. */
#include "joiner.h"
#include "tables.h"

#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* The command's first word and the first after it that is no option: `_start` of launch/facts.py. */
void about(const struct request *request, struct known *known)
{
    const struct given *entrypoint = &request->options[O_entrypoint];
    struct list words = {0};
    struct text text = {0}, key = {0};
    if (entrypoint->set && *entrypoint->value)
        push(&words, entrypoint->value);
    for (size_t i = 0; i < request->command.count; i++)
        if (*request->command.at[i])
            push(&words, request->command.at[i]);
    const char *next = "";
    for (size_t i = 1; i < words.count && !*next; i++)
        if (*words.at[i] != '-')
            next = words.at[i];
    add(&text, words.count ? words.at[0] : "");
    if (words.count)
        add_bytes(&text, "", 1);
    add(&text, next);
    digest(&text, &key);
    known->key = key.at;
    known->program = words.count && strlen(words.at[0]) < 4096 ? words.at[0] : "";
}

/* Where the questions of an earlier such start are, or where those of this one go. */
bool questions(struct known *known, const char *place, bool optimized)
{
    struct stat file, noted;
    struct text text = {0}, name = {0};
    if (stat(known->image, &file))
        return false;
    add(&text, number_in("(", file.st_dev, ", "));
    add(&text, number_in("", file.st_ino, ", "));
    add(&text, number_in("", (unsigned long long)file.st_size, ", "));
    add(&text, number_in("", (unsigned long long)file.st_mtim.tv_sec * 1000000000 +
                                 (unsigned long long)file.st_mtim.tv_nsec, ", '"));
    add(&text, JOIN(known->key, "')"));
    digest(&text, &name);
    char *path = JOIN(place, "/" STARTS "/", name.at);
    bool fresh = stat(path, &noted) == 0 && time(NULL) - noted.st_mtim.tv_sec < STARTS_AGE;
    known->keep = fresh ? "" : name.at;
    known->questions = fresh ? path : optimized ? known->image : "";
    known->behind = !fresh && optimized;
    return true;
}

bool announce(const struct served *served, const struct known *known)
{
    struct list words = {0};
    const char *const told[] = {known->image,  "",  known->program, known->keep, known->key,
                                known->verify, "0", "0",            ""};
    for (size_t i = 0; i < sizeof told / sizeof *told; i++)
        push(&words, told[i]);
    return say(served->server, &words, NULL, 0);
}
