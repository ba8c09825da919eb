//! The program `vswap`: parses the command line and hands over to the command.
#![forbid(unsafe_code)]

mod agent_image;
mod cli;
mod doctor;
mod front;
mod guardian;
mod launch;
mod nested;
mod pager_process;
mod permission;
mod report;
mod run;
mod rundir;
mod size;
mod spill;
mod summary;
mod terminal;

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
        Command::Doctor(doctor) => doctor::run(doctor.json),
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
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let man = clap_mangen::Man::new(sub.clone());
        writeln!(text, ".SH \"VSWAP {}\"", sub.get_name().to_uppercase())?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        man.render_extra_section(&mut text)?;
    }
    Ok(text)
}

/// To standard output; a closed pipe is not our problem.
fn print(text: &[u8]) -> u8 {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => run::OWN_FAILURE,
        _ => 0,
    }
}
