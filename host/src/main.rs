//! The `plugway` program.

fn main() -> std::process::ExitCode {
    plugway::cli::main()
}
