-- Lmod: MODULEPATH/rootless_udi/VERSION.lua for an installation in /opt/rootless_udi/VERSION.
-- `module load rootless_udi` takes the highest version; docs/site.md says how versions lie side by side.

local prefix = pathJoin("/opt/rootless_udi", myModuleVersion())

whatis("Name: rootless_udi")
whatis("Version: " .. myModuleVersion())
whatis("Description: user-defined images (Docker, OCI) without any privilege")
help([[
udi pull IMAGE        fetch an image, once
udi-run IMAGE CMD     run a command in it; srun -n 64 udi-run IMAGE CMD
udi doctor            what this node lets you do
man udi-run
]])

-- One version at a time. man(1) looks into PREFIX/share/man for each PREFIX/bin by itself.
family("rootless_udi")
prepend_path("PATH", pathJoin(prefix, "bin"))

-- Site-wide settings may go here too, such as a store on the parallel file system:
-- if os.getenv("SCRATCH") then setenv("UDI_STORE", pathJoin(os.getenv("SCRATCH"), "udi")) end

if mode() == "load" and myShellName() == "bash" then
    local completion = pathJoin(prefix, "share/bash-completion/completions/udi")
    execute({ cmd = "[ ! -r " .. completion .. " ] || . " .. completion, modeA = { "load" } })
end
