//! What the commands do: each reads its arguments, makes its calls and prints its answer.

mod control;
pub(crate) mod describe;
mod fleet;
mod get;
mod logs;
mod money;
mod outputs;
mod quota;
mod rent;
mod serving;
mod session;
mod submit;
mod tenants;
mod watch;

use crate::args::{Global, UserCommand};
use crate::connect::Api;
use crate::context;
use crate::error::CliError;
use crate::output::Console;
use crate::reference::{Scope, resolve_job};

/// One run of one command: whom it calls, whose objects short names mean, and where it prints.
#[derive(Debug, Clone)]
pub(crate) struct Invocation {
    pub(crate) api: Api,
    pub(crate) scope: Scope,
    pub(crate) console: Console,
}

impl Invocation {
    fn new(global: &Global) -> Result<Self, CliError> {
        let connection = context::resolve(global)?;
        let api = Api::connect(&connection)?;
        Ok(Self { api, scope: connection.scope, console: Console::new(global.output, global.quiet) })
    }

    /// The full resource name of a job.
    pub(crate) async fn job(&self, text: &str) -> Result<String, CliError> {
        resolve_job(&self.api, &self.scope, text).await
    }
}

/// Runs a command.
pub(crate) async fn dispatch(command: UserCommand, global: &Global) -> Result<(), CliError> {
    if let UserCommand::Completion(args) = &command {
        return crate::print_completion(args.shell, &mut crate::command());
    }
    let at = Invocation::new(global)?;
    perform(&at, command).await
}

/// Runs a command over a connection.
pub(crate) async fn perform(at: &Invocation, command: UserCommand) -> Result<(), CliError> {
    match command {
        UserCommand::Submit(args) => Box::pin(submit::submit(at, args)).await,
        UserCommand::Run(args) => Box::pin(submit::run(at, args)).await,
        UserCommand::List(args) => Box::pin(get::list(at, args)).await,
        UserCommand::Get(args) => Box::pin(get::get(at, args)).await,
        UserCommand::Describe(args) => Box::pin(describe::describe(at, &args.job)).await,
        UserCommand::Why(args) => Box::pin(describe::why(at, &args.job)).await,
        UserCommand::Logs(args) => Box::pin(logs::logs(at, args)).await,
        UserCommand::Rent(args) => Box::pin(rent::rent(at, args)).await,
        UserCommand::Release(args) => Box::pin(rent::release(at, args)).await,
        UserCommand::Shell(args) => Box::pin(session::shell(at, args)).await,
        UserCommand::Exec(args) => Box::pin(session::exec(at, args)).await,
        UserCommand::PortForward(args) => Box::pin(session::port_forward(at, args)).await,
        UserCommand::Model(command) => Box::pin(serving::model(at, command)).await,
        UserCommand::Serve(args) => Box::pin(serving::serve(at, args)).await,
        UserCommand::Endpoint(command) => Box::pin(serving::endpoint(at, command)).await,
        UserCommand::Cp(args) => Box::pin(outputs::cp(at, args)).await,
        UserCommand::Cancel(args) => Box::pin(control::cancel(at, args)).await,
        UserCommand::Suspend(args) => Box::pin(control::suspend(at, args)).await,
        UserCommand::Resume(args) => Box::pin(control::resume(at, args)).await,
        UserCommand::Migrate(args) => Box::pin(control::migrate(at, args)).await,
        UserCommand::Checkpoints(args) => Box::pin(get::checkpoints(at, &args.job, get::DEFAULT_LIMIT)).await,
        UserCommand::Nodes(command) => Box::pin(fleet::nodes(at, command)).await,
        UserCommand::Sites(command) => Box::pin(fleet::sites(at, command)).await,
        UserCommand::Devices(args) => Box::pin(fleet::devices(at, args.parent.as_deref(), args.limit.get())).await,
        UserCommand::Token(command) => Box::pin(fleet::token(at, command)).await,
        UserCommand::Usage(args) => Box::pin(money::usage(at, args.of.as_deref(), args.limit.get())).await,
        UserCommand::Receipt(args) => Box::pin(money::receipt(at, &args.job)).await,
        UserCommand::Price(command) => Box::pin(money::price(at, command)).await,
        UserCommand::Deposit(args) => Box::pin(money::deposit(at, args)).await,
        UserCommand::Balance(args) => Box::pin(money::balance(at, args.tenant.as_deref())).await,
        UserCommand::CreditLine(args) => Box::pin(money::credit_line(at, args)).await,
        UserCommand::Quota(command) => Box::pin(quota::quota(at, command)).await,
        UserCommand::Detach(args) => Box::pin(quota::detach(at, args)).await,
        UserCommand::Budget(command) => Box::pin(money::budget(at, command)).await,
        UserCommand::Tenant(command) => Box::pin(tenants::tenant(at, command)).await,
        UserCommand::Project(command) => Box::pin(tenants::project(at, command)).await,
        UserCommand::Key(command) => Box::pin(tenants::key(at, command)).await,
        UserCommand::Secret(command) => Box::pin(tenants::secret(at, command)).await,
        UserCommand::Completion(args) => crate::print_completion(args.shell, &mut crate::command()),
    }
}
