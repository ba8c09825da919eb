//! The program `vswap`: parses the command line and hands over to the command.
#![forbid(unsafe_code)]

mod agent_image;
mod cli;
mod doctor;
mod figures;
mod front;
mod guardian;
mod launch;
mod nested;
mod pager_process;
mod permission;
mod reclaim;
mod report;
mod run;
mod rundir;
mod runs;
mod size;
mod spill;
mod status;
mod summary;
mod terminal;
mod trace;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;

use cli::{Cli, Command, Environment};

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os().collect(), &Environment::new()) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                // Not clap's 2, which would be taken for CMD's.
                _ => ExitCode::from(run::OWN_FAILURE),
            };
        }
    };
    ExitCode::from(match cli.command {
        Command::Run(run) => run::run(&run),
        Command::Status(options) => status::run(&options),
        Command::Reclaim(options) => reclaim::run(&options),
        Command::Doctor(doctor) => doctor::run(&doctor),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "vswap", &mut text);
            print(&text)
        }
        Command::Man => match manual() {
            Ok(text) => print(&text),
            Err(error) => {
                run::complain(&error.to_string());
                run::OWN_FAILURE
            }
        },
    })
}

/// One page: the program, then each of its commands.
fn manual() -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut command = Cli::command();
    command.build();
    let man = clap_mangen::Man::new(command.clone());
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    verbatim(&mut text, &command)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        writeln!(text, ".SH \"VSWAP {}\"", sub.get_name().to_uppercase())?;
        let man = clap_mangen::Man::new(sub.clone());
        let mut section = Vec::new();
        man.render_synopsis_section(&mut section)?;
        man.render_description_section(&mut section)?;
        man.render_options_section(&mut section)?;
        // Below the command's own heading, not beside it.
        text.extend_from_slice(String::from_utf8_lossy(&section).replace(".SH ", ".SS ").as_bytes());
        verbatim(&mut text, sub)?;
    }
    Ok(text)
}

/// The text below a command's help, with its line breaks: headings at the margin, the rest indented.
fn verbatim(text: &mut Vec<u8>, command: &clap::Command) -> io::Result<()> {
    let Some(help) = command.get_after_help() else { return Ok(()) };
    for line in help.to_string().lines() {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        match line.strip_suffix(':').filter(|heading| !heading.starts_with(' ')) {
            Some(heading) => writeln!(text, ".SS \"{heading}\"")?,
            // A dot or quote at the start would be a request.
            None => writeln!(text, ".nf\n\\&{line}\n.fi")?,
        }
    }
    Ok(())
}

/// To standard output; a closed pipe is not our problem.
fn print(text: &[u8]) -> u8 {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => run::OWN_FAILURE,
        _ => 0,
    }
}
