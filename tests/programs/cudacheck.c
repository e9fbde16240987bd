/* Load libcuda as CUDA programs do, call it, say which file it was: "12040 /path/of/libcuda". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "libcuda.so.1";
    void *library = dlopen(name, RTLD_NOW);
    int (*init)(unsigned), (*get)(int *), version = 0;
    Dl_info info;

    if (!library) {
        puts(dlerror());
        return 1;
    }
    init = (int (*)(unsigned))dlsym(library, "cuInit");
    get = (int (*)(int *))dlsym(library, "cuDriverGetVersion");
    if (!init || !get || init(0) || get(&version) || !dladdr((void *)init, &info)) {
        puts("libcuda can't be called");
        return 1;
    }
    printf("%d %s\n", version, info.dli_fname);
    return 0;
}
