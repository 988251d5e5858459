//! One contract for all KMS providers: the same clauses against each of them, at a service that is as real as it can be.
//! `bench` is what a provider has to bring, `clauses` is the contract; a file for each service.

mod aws;
mod bench;
mod clauses;
#[path = "../clouds/servers.rs"]
mod clouds;
mod dev_vault;
mod gcp;
mod key_file;
#[path = "../openbao/server.rs"]
mod openbao;
mod transit;

use bench::Bench;

/// The clauses, as tests of their own, against what this makes.
macro_rules! contract {
    ($provider:ident, $bench:expr, [$($clause:ident),* $(,)?]) => {
        mod $provider {
            use super::*;
            $(#[test]
            fn $clause() {
                clauses::$clause(&$bench);
            })*
        }
    };
    ($provider:ident, $bench:expr) => {
        contract!($provider, $bench, [
            what_is_wrapped_is_unwrapped_by_a_provider_that_knows_nothing,
            a_secret_of_another_volume_is_not_unwrapped_where_the_service_binds_it,
            old_versions_unwrap_and_the_newest_wraps_once_it_is_asked_for,
            every_way_to_revoke_is_a_refusal_and_undoing_it_grants_again,
            every_kind_of_silence_is_unreachable_within_the_deadline,
            a_service_that_throttles_is_unreachable_and_says_so,
            a_changed_blob_is_damage,
            what_cannot_work_is_said_with_a_way_out,
            an_identity_that_is_not_accepted_is_no_revocation,
            an_unwrap_is_one_call_and_a_wrap_as_many_as_are_stated,
        ]);
    };
}

// Between them, the two servers of AWS show every clause: see `clouds/aws.rs`.
contract!(
    aws_kms,
    aws::Bench::ministack(),
    [
        what_is_wrapped_is_unwrapped_by_a_provider_that_knows_nothing,
        a_secret_of_another_volume_is_not_unwrapped_where_the_service_binds_it,
        old_versions_unwrap_and_the_newest_wraps_once_it_is_asked_for,
        every_way_to_revoke_is_a_refusal_and_undoing_it_grants_again,
        every_kind_of_silence_is_unreachable_within_the_deadline,
        a_service_that_throttles_is_unreachable_and_says_so,
        what_cannot_work_is_said_with_a_way_out,
        an_identity_that_is_not_accepted_is_no_revocation,
        an_unwrap_is_one_call_and_a_wrap_as_many_as_are_stated,
    ]
);
contract!(
    aws_kms_that_authenticates,
    aws::Bench::moto(),
    [
        what_is_wrapped_is_unwrapped_by_a_provider_that_knows_nothing,
        a_secret_of_another_volume_is_not_unwrapped_where_the_service_binds_it,
        old_versions_unwrap_and_the_newest_wraps_once_it_is_asked_for,
        a_changed_blob_is_damage,
    ]
);
contract!(google_cloud_kms, gcp::Bench::new());
contract!(azure_key_vault, dev_vault::DevVault::rsa());
contract!(azure_managed_hsm, dev_vault::DevVault::aes());
contract!(local, key_file::KeyFile::new());
contract!(openbao_transit, transit::Transit::new());
contract!(openbao_transit_with_a_derived_key, transit::Transit::derived());

#[test]
fn a_secret_can_be_wrapped_again_by_any_other_provider() {
    let benches: Vec<Box<dyn Bench>> = vec![
        Box::new(aws::Bench::moto()),
        Box::new(gcp::Bench::new()),
        Box::new(dev_vault::DevVault::rsa()),
        Box::new(dev_vault::DevVault::aes()),
        Box::new(key_file::KeyFile::new()),
        Box::new(transit::Transit::new()),
    ];
    clauses::a_secret_can_be_wrapped_again_by_any_other_provider(&benches);
}
