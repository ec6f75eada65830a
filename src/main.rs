//! The `datastore` binary: see `cli`.

// A request makes and drops dozens of small buffers on whatever thread is free; glibc's allocator showed at the top of profiles.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    datastore::cli::main()
}
