"""Run a kernel through the CUDA driver API with nothing but ctypes; print the device's name.

The kernel is PTX text, so that the driver's own compiler (libnvidia-ptxjitcompiler) is used too.
"""

import ctypes

PTX = b"""
.version 6.0
.target sm_70
.address_size 64
.visible .entry scale(.param .u64 data, .param .f32 by, .param .u32 count)
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [data];
    ld.param.f32 %f1, [by];
    ld.param.u32 %r1, [count];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.f32 %f2, [%rd4];
    mul.f32 %f3, %f2, %f1;
    st.global.f32 [%rd4], %f3;
DONE:
    ret;
}
"""
COUNT = 100_000
BLOCK = 256

cuda = ctypes.CDLL("libcuda.so.1")


def call(name: str, *arguments: object) -> None:
    """Call a function of the driver API; any result but CUDA_SUCCESS ends the program."""
    status = getattr(cuda, name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(status, ctypes.byref(text))
        raise SystemExit(f"{name}: error {status}: {(text.value or b'').decode()}")


def main() -> None:
    """Scale 100,000 numbers on the first device and check every one."""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(100)
    context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    memory = ctypes.c_uint64()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDeviceGetName", name, len(name), device)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuModuleLoadData", ctypes.byref(module), PTX)
    call("cuModuleGetFunction", ctypes.byref(function), module, b"scale")
    numbers = (ctypes.c_float * COUNT)(*range(COUNT))
    size = ctypes.c_size_t(ctypes.sizeof(numbers))
    call("cuMemAlloc_v2", ctypes.byref(memory), size)
    call("cuMemcpyHtoD_v2", memory, numbers, size)
    values = (memory, ctypes.c_float(3), ctypes.c_uint32(COUNT))
    pointers = (ctypes.c_void_p * 3)(*(ctypes.addressof(v) for v in values))
    grid = -(-COUNT // BLOCK)
    call("cuLaunchKernel", function, grid, 1, 1, BLOCK, 1, 1, 0, None, pointers, None)
    call("cuCtxSynchronize")
    call("cuMemcpyDtoH_v2", numbers, memory, size)
    call("cuMemFree_v2", memory)
    if any(numbers[i] != 3 * i for i in range(COUNT)):
        raise SystemExit("the kernel's result is wrong")
    print(name.value.decode())


main()
