//! The embedded Key Vault as its users meet it: the real program, driven by Microsoft's own clients.

mod commands;
mod faults;
mod harness;
mod operations;
mod python;
mod refusals;
mod tokens;
